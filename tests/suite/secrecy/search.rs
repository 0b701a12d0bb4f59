//! The search for secrets in every byte that is left of a server.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use tempfile::TempDir;

/// A pepper of 32 letters, so that it can be searched for as it is in memory.
pub const PEPPER: &str = "PepperPepperPepperPepperPepperXY";

/// Texts that must be nowhere, and some that must be somewhere, or the search would prove nothing.
pub struct Search {
    secrets: Vec<String>,
    key_ids: Vec<String>,
    folder: TempDir,
}

impl Search {
    pub fn new(plaintexts: &[String], admin_token: &str) -> Self {
        assert!(plaintexts.len() > 5);
        let mut secrets = vec![admin_token.to_owned(), PEPPER.to_owned()];
        // Its hexadecimal digits or base64 are what is random in it.
        secrets.push(admin_token.trim_start_matches("gkadmin_").to_owned());
        let hex = |text: &str| {
            text.bytes()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        secrets.push(hex(PEPPER));
        for text in [PEPPER, admin_token] {
            secrets.push(
                BASE64_STANDARD
                    .encode(text)
                    .trim_end_matches('=')
                    .to_owned(),
            );
        }
        let mut key_ids = Vec::new();
        for plaintext in plaintexts {
            let secret = &plaintext[plaintext.len() - 49..plaintext.len() - 6];
            key_ids.push(plaintext[plaintext.len() - 65..plaintext.len() - 49].to_owned());
            // Not even a part of it, as where a line is cut.
            secrets.extend([&secret[..20], &secret[11..31], &secret[23..]].map(str::to_owned));
            secrets.push(hex(&secret[..16]));
            // Base64 of it, wherever in a longer text it begins.
            for skipped in 0..3 {
                secrets.push(BASE64_URL_SAFE_NO_PAD.encode(&secret[skipped..skipped + 30]));
            }
        }
        assert!(
            secrets.iter().all(|secret| secret.len() >= 20),
            "{secrets:?}"
        );
        let folder = TempDir::new().expect("a temporary folder");
        fs::write(folder.path().join("secrets"), secrets.join("\n")).expect("a file");
        fs::write(folder.path().join("key_ids"), key_ids.join("\n")).expect("a file");
        Self {
            secrets,
            key_ids,
            folder,
        }
    }

    pub fn finds_nothing_in_text(&self, text: &str, what: &str) {
        for secret in &self.secrets {
            assert!(!text.contains(&**secret), "{what} holds {secret}:\n{text}");
        }
    }

    /// Searches every byte of every file but the two that hold secrets.
    pub fn finds_nothing_in(&self, folder: &Path) {
        let found: Vec<_> = self
            .files_with("secrets", folder)
            .into_iter()
            .filter(|file| {
                let name = file.file_name().and_then(|name| name.to_str());
                !matches!(name, Some("gatekey-admin.token" | "gatekey.pepper"))
            })
            .collect();
        assert!(found.is_empty(), "secrets are in {found:?}");
    }

    /// The search does see what is there.
    pub fn finds_a_key_id_in(&self, folder: &Path) {
        assert!(!self.key_ids.is_empty());
        let found = self.files_with("key_ids", folder);
        assert!(!found.is_empty(), "{} was not searched", folder.display());
    }

    /// The files under `folder` that hold one of those texts. By grep: a database is large, and a test is not optimized.
    fn files_with(&self, texts: &str, folder: &Path) -> Vec<PathBuf> {
        let output = Command::new("grep")
            .args([
                "--recursive",
                "--text",
                "--fixed-strings",
                "--files-with-matches",
                "--file",
            ])
            .arg(self.folder.path().join(texts))
            .arg(folder)
            .env("LC_ALL", "C")
            .output()
            .expect("grep is on the PATH");
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        let files = String::from_utf8(output.stdout).expect("paths are text");
        files.lines().map(PathBuf::from).collect()
    }
}
