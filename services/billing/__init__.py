"""Billing: prices, the metering fold, and bills that explain themselves."""
