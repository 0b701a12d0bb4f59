//! The secret files, read at startup or created on the first start.
//!
//! On SQLite a missing file is created, readable only by its owner. On PostgreSQL a missing file is
//! an error because replicas must share the files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
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

/// The permission bits of a file's group and of others.
const GROUP_AND_OTHERS: u32 = 0o077;
/// The byte order mark that some editors write at the beginning of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The content of the files, and the paths of those that this start created.
pub struct KeyFiles {
    pub admin: AdminToken,
    pub peppers: Peppers,
    pub made: Vec<PathBuf>,
}

/// Reads both files, and creates missing ones.
///
/// # Errors
/// An error that names the variable, the file and how to correct it.
pub async fn read(
    config: &Config,
    engine: Engine,
    store: &dyn Store,
) -> Result<KeyFiles, StartError> {
    let mut made = Vec::new();
    let mut file = |variable, path: &Path, may_make: bool, generate: fn() -> Zeroizing<String>| {
        let wrong = |why: String| StartError::file(variable, path, why);
        match read_secret(path, config.allow_readable_secrets) {
            Ok(bytes) => text(&bytes).map_err(|why| wrong(why.to_owned())),
            Err(SecretFileError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => {
                if engine == Engine::Postgres {
                    return Err(wrong(
                        "there is no such file, and replicas must share one".to_owned(),
                    ));
                }
                if !may_make {
                    return Err(wrong(
                        "there is no such file, but the store's keys were made under a pepper: \
                         restore it, or, if it is lost, run `gatekey migrate --forget-peppers`"
                            .to_owned(),
                    ));
                }
                let text = generate();
                write(path, &text).map_err(|error| wrong(error.to_string()))?;
                made.push(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
                Ok(text)
            }
            Err(error) => Err(wrong(error.to_string())),
        }
    };

    let path = &config.admin_token_file;
    let admin = file("GATEKEY_ADMIN_TOKEN_FILE", path, true, AdminToken::generate)?;
    let admin = AdminToken::parse(&admin)
        .map_err(|wrong| StartError::file("GATEKEY_ADMIN_TOKEN_FILE", path, wrong.to_string()))?;

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
            .map_err(|wrong| StartError::file("GATEKEY_PEPPER_FILE", path, wrong.to_string()))?
    };
    Ok(KeyFiles {
        admin,
        peppers,
        made,
    })
}

/// The reason why a secret file was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretFileError {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error(
        "its mode is {mode:04o}, so that group or others can access it: run `chmod 600 {path}`, \
         or set GATEKEY_ALLOW_READABLE_SECRETS=true"
    )]
    Exposed { mode: u32, path: String },
}

/// Reads a file that holds a secret. Follows links because Kubernetes mounts secrets as links.
///
/// # Errors
/// Fails if the file cannot be read, or if group or others can access it and `allow_readable` is
/// false.
pub(super) fn read_secret(
    path: &Path,
    allow_readable: bool,
) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_file() && mode & GROUP_AND_OTHERS != 0 && !allow_readable {
        let path = path.display().to_string();
        return Err(SecretFileError::Exposed { mode, path });
    }
    // The capacity fits the whole file, so that no growing buffer leaves a copy behind.
    let room = usize::try_from(metadata.len()).unwrap_or_default() + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Returns the text of a file without its byte order mark.
fn text(bytes: &[u8]) -> Result<Zeroizing<String>, &'static str> {
    let text = str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    Ok(Zeroizing::new(text.to_owned()))
}

/// Writes a file atomically, readable only by its owner.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    // A file that an interrupted start left behind can have any mode.
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
