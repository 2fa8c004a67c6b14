"""Storage: the database of an inbox: engines, tables, connections and errors."""
