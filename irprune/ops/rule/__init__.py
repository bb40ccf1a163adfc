"""What axis rules are made of: signatures said as strings, and helpers that families share."""
