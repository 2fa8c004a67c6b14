"""Schema: the tables of the inbox, and their upgrade."""
