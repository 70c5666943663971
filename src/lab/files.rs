//! Files that others may be reading meanwhile: written whole beside their place, then renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::LabError;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, as the process's umask allows.
    Public,
    /// The owner alone: for private keys and codes.
    Owner,
}

/// Writes the whole file or leaves the old one. A reader sees the old bytes or the new, never half of them.
pub fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), LabError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{:016x}", fastrand::u64(..)));
    let written = fill(&beside, bytes, access).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(|source| failed(path, source))
}

fn fill(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mode = match access {
        Access::Public => 0o666,
        Access::Owner => 0o600,
    };
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads a text file.
pub fn read(path: &Path) -> Result<String, LabError> {
    fs::read_to_string(path).map_err(|source| failed(path, source))
}

/// Makes a folder and those above it; one that exists is fine.
pub fn folder(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(|source| failed(path, source))
}

/// The error about `path`.
pub fn failed(path: &Path, source: io::Error) -> LabError {
    LabError::File {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_for_the_owner_is_readable_by_nobody_else() {
        let dir = tempfile::tempdir().must();
        let path = dir.path().join("a.key");

        write(&path, b"secret", Access::Owner).must();

        let mode = fs::metadata(&path).must().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn writing_replaces_the_old_file_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().must();
        let path = dir.path().join("a.pem");
        write(&path, b"old and longer", Access::Public).must();

        write(&path, b"new", Access::Public).must();

        assert_eq!(read(&path).must(), "new");
        assert_eq!(fs::read_dir(dir.path()).must().count(), 1);
    }

    #[test]
    fn a_failed_write_names_the_file() {
        let dir = tempfile::tempdir().must();

        let error = write(&dir.path().join("no/such/a.pem"), b"", Access::Public).unwrap_err();

        assert!(error.to_string().contains("no/such/a.pem"), "{error}");
    }
}
