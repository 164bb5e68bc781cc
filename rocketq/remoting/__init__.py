"""The remoting protocol: a sans-I/O core and thin drivers around it."""
