"""What varies an image: albumentations policies, mixing on batches, test-time views, and a preview of a policy."""
