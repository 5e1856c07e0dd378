"""From scores on disk to tables and figures."""
