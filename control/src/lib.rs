//! The API of the daemon: types, client and server.
