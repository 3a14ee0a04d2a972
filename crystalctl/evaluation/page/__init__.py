"""What a report is made of: escaped text, drawn structures, charts, one page without network."""
