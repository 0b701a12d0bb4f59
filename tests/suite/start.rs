//! The start and the end of the program, as the person meets them who runs it.

mod environment;
mod files;
mod first;
mod health;
mod settings;
mod stop;
mod store;
