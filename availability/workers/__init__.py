"""Several server processes on one port: `group` starts and watches them, `app` is what they and their parent run."""
