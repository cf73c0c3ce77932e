"""Rewards from outside: the user's functions and servers, several rewards at once, and what happens where one fails."""
