"""Objectives of unlearning: every one a loss to minimise."""
