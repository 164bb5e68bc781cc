"""Runs the consumers of an application."""
