"""From records to what goes into a paper: a tidy frame, tables, and their rendering."""
