"""What tests are made with: small networks and bundles, independent gradients, a stand-in for a GPU."""
