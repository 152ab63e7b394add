"""White-box attacks that follow the gradient of what they want through the victim that is trained on them."""
