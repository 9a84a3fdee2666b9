"""Self-contained HTML pages: reports, comparisons and blind studies."""
