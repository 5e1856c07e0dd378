"""What people see of a history: its nights in lines, its page, and the history as Python holds it."""
