"""What can be told of an analysed graph: costs, linear layers, kinds of groups, blocks, widths,
outlines and explanations."""
