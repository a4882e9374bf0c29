"""WooCommerce behind the storefront's port: auth, client, answers; stock and orders. Its types stay in here."""
