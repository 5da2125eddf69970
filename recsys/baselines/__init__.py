"""What a practitioner would try first, by the same protocol: a base rate, a regression, trees."""
