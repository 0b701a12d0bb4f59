//! The command-line entry point.

use std::process::ExitCode;

use gatekey::server::{self, config::Command};

/// Measured to use less CPU per call than the system allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let (command, config) = match server::config::parse() {
        Ok(parsed) => parsed,
        Err(stop) => return stop,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let ended = match command {
        Command::Serve => server::serve(&runtime, &config),
        Command::Migrate {
            forget_peppers,
            restored,
        } => runtime.block_on(server::migrate(&config, forget_peppers, restored)),
        Command::Health => runtime.block_on(server::health::ask(&config)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Prints the error on one line and returns the failure exit code.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("gatekey: {error}");
    ExitCode::FAILURE
}
