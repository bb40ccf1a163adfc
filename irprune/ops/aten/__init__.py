"""One file per family of operators; importing a file declares its entries."""
