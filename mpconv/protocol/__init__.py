"""What the coordinator and the workers say to each other, and the sockets that carry it; see PROTOCOL.md.

It checks every frame. It does not decide what a message leads to, and image bytes never travel here.
"""
