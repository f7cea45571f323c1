"""What rounding costs: losses, agreement, sensitivity, and the budget they are held to."""
