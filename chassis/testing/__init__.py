"""What tests of the kernel and of services stand on."""
