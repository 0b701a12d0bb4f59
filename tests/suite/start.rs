//! The start and the end of the program, as the person meets them who runs it.

mod first;
mod health;
mod settings;
mod stop;
mod store;
