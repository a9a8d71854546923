"""Networks: how they are built, trained, measured, kept in a file."""
