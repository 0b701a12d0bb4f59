//! The two files that hold secrets: read, or made on the first start.
//!
//! On SQLite a missing one is made, readable by its owner alone. On PostgreSQL replicas must
//! share them, so that a missing one is an error.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use tracing::warn;
use zeroize::Zeroizing;

use super::{
    StartError,
    config::{Config, NO_PEPPER},
};
use crate::{
    service::secret::{AdminToken, Peppers},
    store::{Engine, Store},
};

/// What the files hold, and which of them were made just now.
pub struct KeyFiles {
    pub admin: AdminToken,
    pub peppers: Peppers,
    pub made: Vec<PathBuf>,
}

/// Reads both files, or makes what is missing.
///
/// # Errors
/// One that names the variable, the file and what would be right.
pub async fn read(
    config: &Config,
    engine: Engine,
    store: &dyn Store,
) -> Result<KeyFiles, StartError> {
    let mut made = Vec::new();
    let mut file = |variable, path: &Path, may_make: bool, generate: fn() -> Zeroizing<String>| {
        let wrong = |why: String| setting(variable, path, why);
        match fs::read_to_string(path) {
            Ok(text) => Ok(Zeroizing::new(text)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(wrong(error.to_string())),
            Err(_) if engine == Engine::Postgres => Err(wrong(
                "there is no such file, and replicas must share one".to_owned(),
            )),
            Err(_) if !may_make => Err(wrong(
                "there is no such file, but the store's keys were made under a pepper: restore \
                 it, or, if it is lost, run `gatekey migrate --forget-peppers`"
                    .to_owned(),
            )),
            Err(_) => {
                let text = generate();
                write(path, &text).map_err(|error| wrong(error.to_string()))?;
                made.push(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
                Ok(text)
            }
        }
    };

    let path = &config.admin_token_file;
    let admin = file("GATEKEY_ADMIN_TOKEN_FILE", path, true, AdminToken::generate)?;
    let admin = AdminToken::parse(&admin)
        .map_err(|wrong| setting("GATEKEY_ADMIN_TOKEN_FILE", path, wrong.to_string()))?;

    let path = &config.pepper_file;
    let peppers = if path.as_os_str() == NO_PEPPER {
        warn!(
            "GATEKEY_PEPPER_FILE=none is for trials: the first use of each key and every guess \
             cost an Argon2 hash; in production, give a pepper file"
        );
        Peppers::none()
    } else {
        let unused = store.pepper_checks().await?.is_empty();
        let peppers = file("GATEKEY_PEPPER_FILE", path, unused, Peppers::generate)?;
        Peppers::parse(&peppers)
            .map_err(|wrong| setting("GATEKEY_PEPPER_FILE", path, wrong.to_string()))?
    };
    Ok(KeyFiles {
        admin,
        peppers,
        made,
    })
}

fn setting(variable: &'static str, path: &Path, why: String) -> StartError {
    StartError::Setting {
        variable,
        value: path.display().to_string(),
        why,
    }
}

/// Writes a whole file or none, readable by its owner alone.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    // What a broken start left behind has whatever mode it has.
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(part, path)
}
