//! `skiserver certs`: makes a private authority and the certificates of nodes, and says what is wrong with one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use zeroize::Zeroizing;

use super::{complain, say};
use crate::{
    address::Domain,
    clock::Clock,
    lab::{
        LabError,
        ca::{self, Authority, DAY_MS, LEAF_DAYS, LeafRequest},
        check::{self, Pair, Verdict},
        files,
    },
};

/// Makes and checks certificates.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Makes a private certificate authority: ca.pem and ca.key.
    Ca {
        /// The folder for both files.
        #[arg(long)]
        out: PathBuf,
        /// The name that the authority carries.
        #[arg(long, default_value = "skiserver private authority")]
        name: String,
    },
    /// Makes the certificate of a node: node.pem and node.key. Made again, they replace the old pair.
    Node {
        /// The folder of the authority.
        #[arg(long)]
        ca: PathBuf,
        /// The domain that the node serves.
        #[arg(long)]
        domain: String,
        /// The folder for both files.
        #[arg(long)]
        out: PathBuf,
        /// How long it is valid.
        #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(i64).range(1..=3_650))]
        days: i64,
        /// A further DNS name or IP address; may be given several times.
        #[arg(long)]
        san: Vec<String>,
    },
    /// Says whether other domains and apps will take a certificate, and why not.
    Check {
        /// The certificate, then those between it and its root, as PEM.
        file: PathBuf,
        /// Its private key.
        #[arg(long)]
        key: Option<PathBuf>,
        /// The private authority that others trust; the public ones if absent.
        #[arg(long)]
        ca: Option<PathBuf>,
        /// The domain that the node serves.
        #[arg(long)]
        domain: String,
    },
}

/// Runs the command. A certificate that others will refuse ends with 1.
pub fn run(args: Args) -> ExitCode {
    let done = match args.task {
        Task::Ca { out, name } => make_authority(&out, &name),
        Task::Node {
            ca,
            domain,
            out,
            days,
            san,
        } => make_node(&ca, &domain, &out, days, san),
        Task::Check {
            file,
            key,
            ca,
            domain,
        } => check_pair(&file, key.as_deref(), ca.as_deref(), &domain),
    };
    done.unwrap_or_else(|error| {
        complain(error);
        ExitCode::FAILURE
    })
}

fn make_authority(out: &Path, name: &str) -> Result<ExitCode, LabError> {
    let key = ca::key_file(out);
    if key.exists() {
        let taken = io::Error::new(
            io::ErrorKind::AlreadyExists,
            "it exists; certificates made with it would no longer be trusted",
        );
        return Err(files::failed(&key, taken));
    }
    Authority::generate(name)?.save(out)?;
    say(format_args!(
        "{}: give it to every domain of the federation\n{}: keep it secret",
        ca::certificate_file(out).display(),
        key.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn make_node(
    ca: &Path,
    domain: &str,
    out: &Path,
    days: i64,
    san: Vec<String>,
) -> Result<ExitCode, LabError> {
    let mut request = LeafRequest::new(parse_domain(domain)?.as_str());
    request.not_after_at = Clock::default().now_ms() + days * DAY_MS;
    request.extra_sans = san;
    let issued = Authority::open(ca)?.issue(&request)?;
    files::folder(out)?;
    let (certificate, key) = (out.join("node.pem"), out.join("node.key"));
    issued.save(&certificate, &key)?;
    say(format_args!(
        "{}: tls.certificate\n{}: tls.key, keep it secret",
        certificate.display(),
        key.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn check_pair(
    file: &Path,
    key: Option<&Path>,
    ca: Option<&Path>,
    domain: &str,
) -> Result<ExitCode, LabError> {
    let domain = parse_domain(domain)?;
    let bytes = |path: &Path| fs::read(path).map_err(|error| files::failed(path, error));
    let chain_pem = bytes(file)?;
    let key_pem = key.map(bytes).transpose()?.map(Zeroizing::new);
    let ca_pem = ca.map(bytes).transpose()?;
    let findings = check::check(&Pair {
        chain_pem: &chain_pem,
        key_pem: key_pem.as_ref().map(|pem| pem.as_slice()),
        ca_pem: ca_pem.as_deref(),
        domain: &domain,
        now_ms: Clock::default().now_ms(),
    });
    for finding in &findings {
        let sign = match finding.verdict {
            Verdict::Good => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Wrong => "wrong  ",
        };
        say(format_args!("{sign}  {}", finding.text));
    }
    let refused = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Wrong);
    Ok(if refused {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn parse_domain(text: &str) -> Result<Domain, LabError> {
    Domain::parse(text).map_err(|_| LabError::Unusable(format!("{text:?} is not a domain name")))
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        certs: Args,
    }

    fn ends_well(words: &[&str]) -> bool {
        let line = Line::try_parse_from([&["certs"], words].concat()).must();
        let code = run(line.certs);
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
    }

    #[test]
    fn what_the_command_makes_passes_its_own_check() {
        let dir = tempfile::tempdir().must();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (ca, node) = (path("ca"), path("a.test"));

        assert!(ends_well(&["ca", "--out", &ca]));
        assert!(ends_well(&[
            "node", "--ca", &ca, "--domain", "A.test", "--out", &node
        ]));

        let files = [
            path("a.test/node.pem"),
            path("a.test/node.key"),
            path("ca/ca.pem"),
        ];
        let [certificate, key, ca] = &files;
        let check = ["check", certificate, "--key", key, "--ca", ca, "--domain"];
        assert!(ends_well(&[&check[..], &["a.test"]].concat()));
        assert!(!ends_well(&[&check[..], &["b.test"]].concat()));
    }

    #[test]
    fn an_authority_is_never_overwritten() {
        let dir = tempfile::tempdir().must();
        let ca = dir.path().display().to_string();
        assert!(ends_well(&["ca", "--out", &ca]));
        let before = files::read(&ca::key_file(dir.path())).must();

        assert!(!ends_well(&["ca", "--out", &ca]));

        assert_eq!(files::read(&ca::key_file(dir.path())).must(), before);
    }
}
