"""What `towerflow` offers of the library: plan, calibrate, advise."""
