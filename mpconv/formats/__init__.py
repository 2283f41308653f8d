"""What lies in the bytes: an image is a format over a transport."""
