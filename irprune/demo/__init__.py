"""The demonstration: a small net on digits, trained, pruned, proven and exported."""
