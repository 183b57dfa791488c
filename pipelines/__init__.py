"""The stories: one file per paper, imported as `t2i.pipelines.<name>`."""
