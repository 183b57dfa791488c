"""What everything stands on: types, seeds, errors, devices, configuration. It knows nothing of the rest."""
