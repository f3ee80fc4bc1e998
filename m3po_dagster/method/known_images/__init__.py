"""Published lists of benchmark images, as package data."""
