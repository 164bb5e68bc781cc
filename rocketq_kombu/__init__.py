"""Kombu transport for rocketq: nothing is registered yet, Celery support is being built."""
