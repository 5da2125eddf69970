"""What a practitioner would try first, under the same protocol: a base rate, a regression,
trees."""
