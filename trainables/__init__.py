"""The methods that are swept; each module exports METHOD."""
