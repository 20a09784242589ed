//! `$CELL_HOME`: where a nucleus keeps everything, and who may hold it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ed25519_dalek::SigningKey;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use zeroize::Zeroizing;

/// The directory, and the names within it.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    root: PathBuf,
    /// The shared ledger that was named for this run, if any.
    ledger_url: Option<String>,
}

impl Home {
    /// The given directory, or `~/.cell`. Nothing is created.
    pub(crate) fn locate(given: Option<PathBuf>) -> anyhow::Result<Self> {
        let root = match given {
            Some(root) => std::path::absolute(root)?,
            None => {
                let home = std::env::var_os("HOME")
                    .context("HOME is not set; say where to keep things with --home DIR")?;
                PathBuf::from(home).join(".cell")
            }
        };
        Ok(Self { root, ledger_url: None })
    }

    /// The same with a shared ledger in place of what the settings say.
    pub(crate) fn with_ledger(self, url: Option<String>) -> Self {
        Self { ledger_url: url, ..self }
    }

    /// The shared ledger that was named for this run, if any.
    pub(crate) fn ledger_url(&self) -> Option<&str> {
        self.ledger_url.as_deref()
    }

    /// Creates the directories that are missing, readable by this user alone.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        for directory in [self.root.clone(), self.cells(), self.sessions()] {
            DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.root.join("ledger.db")
    }

    pub(crate) fn receipts(&self) -> PathBuf {
        self.root.join("receipts.db")
    }

    pub(crate) fn cells(&self) -> PathBuf {
        self.root.join("cells")
    }

    pub(crate) fn cell(&self, name: &str) -> PathBuf {
        self.cells().join(name)
    }

    pub(crate) fn cell_socket(&self, name: &str) -> PathBuf {
        self.cell(name).join("cell.sock")
    }

    pub(crate) fn cell_log(&self, name: &str) -> PathBuf {
        self.cell(name).join("log").join("cell.log")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("nucleus.sock")
    }

    pub(crate) fn metrics_socket(&self) -> PathBuf {
        self.root.join("metrics.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("nucleus.log")
    }

    pub(crate) fn artefacts(&self) -> PathBuf {
        self.root.join("artefacts")
    }

    pub(crate) fn sessions(&self) -> PathBuf {
        self.root.join("sessions")
    }

    /// The key that signs for this home; made in a fresh one.
    pub(crate) fn key(&self) -> anyhow::Result<SigningKey> {
        Ok(SigningKey::from_bytes(&*self.secret(&self.identity())?))
    }

    /// Takes the lock that the one nucleus of this home holds; `None` if another has it.
    pub(crate) fn lock(&self) -> anyhow::Result<Option<File>> {
        let path = self.root.join("nucleus.lock");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// The process that holds the lock, as it wrote itself.
    pub(crate) fn lock_holder(&self) -> String {
        let holder = fs::read_to_string(self.root.join("nucleus.lock")).unwrap_or_default();
        let holder: String = holder.chars().filter(char::is_ascii_digit).take(10).collect();
        if holder.is_empty() { "unknown".into() } else { holder }
    }

    /// A secret of 32 bytes kept under this name; made from the system's randomness if absent.
    pub(crate) fn secret(&self, path: &Path) -> anyhow::Result<Zeroizing<[u8; 32]>> {
        if let Some(secret) = read_secret(path)? {
            return Ok(secret);
        }
        let secret = Zeroizing::new(random()?);
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(&*secret)?;
        file.sync_all()?;
        // A link fails where a name exists, so of two processes that start at once one wins.
        let linked = fs::hard_link(&temporary, path);
        fs::remove_file(&temporary)?;
        match linked {
            Ok(()) => Ok(secret),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                read_secret(path)?.with_context(|| format!("{} vanished", path.display()))
            }
            Err(error) => Err(error).with_context(|| format!("create {}", path.display())),
        }
    }
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut random = [0; N];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("get randomness: {error}"))?;
    Ok(random)
}

/// Replaces a file of the home, wholly or not at all, and durably. Its owner alone can read it.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let replace = || -> io::Result<()> {
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        // Under a name of its own: others may be replacing the same file.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(directory)?.sync_all()
    };
    replace().with_context(|| format!("write {}", path.display()))
}

/// Reads a regular file of at most this many bytes.
///
/// Whatever else stands under the name (a pipe, a device, a directory) is refused and never waited for.
pub(crate) fn read_file(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let read = || -> anyhow::Result<Vec<u8>> {
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, OFlags::RDONLY | flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            anyhow::bail!("it is not a file");
        }
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            anyhow::bail!("it has more than {bytes_max} bytes");
        }
        Ok(bytes)
    };
    read().with_context(|| format!("read {}", path.display()))
}

fn read_secret(path: &Path) -> anyhow::Result<Option<Zeroizing<[u8; 32]>>> {
    use std::os::unix::fs::PermissionsExt as _;
    let bytes = match fs::read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        anyhow::bail!(
            "{0} can be read by others (mode {1:03o}); run `chmod 600 {0}`",
            path.display(),
            mode & 0o777
        );
    }
    let secret = <[u8; 32]>::try_from(bytes.as_slice());
    let secret = secret.map_err(|_| {
        anyhow::anyhow!("{} has {} bytes instead of 32", path.display(), bytes.len())
    })?;
    Ok(Some(Zeroizing::new(secret)))
}
