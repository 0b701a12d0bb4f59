//! The command line.

use std::process::ExitCode;

use gatekey::server::{self, config::Command};

/// Measured: less CPU a call than the system's allocator.
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

/// One line, whatever went wrong.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("gatekey: {error}");
    ExitCode::FAILURE
}
