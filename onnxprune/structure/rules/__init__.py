"""Rules and rewriters of operators, one module a family. Importing a family registers it."""
