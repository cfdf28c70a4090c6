//! `cargo xtask vm`: boots Debian's kernels in QEMU, emulated, and runs tests of `lb-tests` there.
//!
//! The guest has no disk: an initramfs holds a shell, the kernel modules that we need, and the test programs with
//! their libraries. What happens is read from its serial console. How long it takes there says nothing of performance.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::summary::Summary;
use crate::{debian, exec, setup, workspace};

mod initramfs;
mod modules;

use initramfs::Initramfs;

pub(crate) const AFTER_HELP: &str = "\
No virtualisation is needed: QEMU emulates a machine of 2 processors and 1.5 GiB. It takes 2 to 3 minutes a kernel once the
tests are built. Kernels come as packages from the Debian mirror that this machine's apt uses, are unpacked below ~/.cache/lb
(or LB_CACHE), and are not installed.

Examples:
    cargo xtask vm                          packet tests on the kernels of Debian 12 and 13
    cargo xtask vm --kernel 6.18,newest     on newer ones
    cargo xtask vm --kernel 6.1 -- node     only the packet tests with `node` in their name
";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which kernels to boot, one after the other, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["6.1", "6.12"])]
    kernel: Vec<Kernel>,
    /// Which test target of lb-tests to run there
    #[arg(long, value_name = "TARGET", default_value = "packets")]
    test: String,
    /// Run this program instead of a test; its exit code decides
    #[arg(long, value_name = "FILE", conflicts_with = "test")]
    program: Option<PathBuf>,
    /// Passed to the test program, such as part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kernel {
    /// Debian 12's
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's
    #[value(name = "6.12")]
    V6_12,
    /// From Debian 13's backports, for as long as they keep it
    #[value(name = "6.18")]
    V6_18,
    /// The newest of Debian 13's backports
    Newest,
}

impl Kernel {
    /// As the command line names it.
    fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
            Kernel::V6_18 => "6.18",
            Kernel::Newest => "newest",
        }
    }

    /// The suite of Debian's archive that has it.
    fn suite(self) -> &'static str {
        match self {
            Kernel::V6_1 => "bookworm",
            Kernel::V6_12 => "trixie",
            Kernel::V6_18 | Kernel::Newest => "trixie-backports",
        }
    }

    /// The package of the kernel itself: `linux-image-` and a version. Backports move on to newer kernels and drop the
    /// older ones some time later, so one of those is looked for by its version.
    fn package(self, archive: &debian::Release) -> Result<String> {
        match self {
            Kernel::V6_1 | Kernel::V6_12 | Kernel::Newest => archive
                .dependencies("linux-image-cloud-amd64")?
                .into_iter()
                .find(|package| package.starts_with(IMAGE))
                .context("linux-image-cloud-amd64 depends on no kernel"),
            Kernel::V6_18 => archive
                .newest(r"^linux-image-6\.18\.[^-]*-cloud-amd64$")?
                .with_context(|| format!("Debian's {} have no kernel 6.18 any more", self.suite())),
        }
    }
}

/// What the names of Debian's kernel packages start with; the version that the kernel gives itself follows.
const IMAGE: &str = "linux-image-";
/// From 7.0 on, Debian's kernel package is empty and depends on these.
const PARTS: [&str; 2] = ["linux-binary-", "linux-modules-"];

/// What the packet tests and the lab's devices need, as modules of Debian's kernel.
const MODULES: [&str; 6] = ["veth", "dummy", "8021q", "sch_ingress", "cls_bpf", "nf_tables"];
/// The guest's memory, MiB.
const MEMORY: &str = "1536";
/// How long a guest may take, seconds: emulated, it is about ten times slower than the host.
const TIME_LIMIT: &str = "1200";
/// All that QEMU can emulate but CMPXCHG16B. QEMU 7.2 (Debian 12) leaves it with flags that are bits of an operand of the
/// instruction before: an interrupt that comes just then returns to a word of flags such as 0x777a0a42, and the guest dies
/// of a double fault, as 6.12 did in the memory allocator. QEMU's later translation, which replaced that helper, does not
/// have it. Kernels do without the instruction where the processor does not announce it.
const CPU: &str = "max,cx16=off";
/// The line by which the guest says how the program ended.
const EXIT_LINE: &str = "vm: program ended with ";

pub(crate) fn main(options: &Options) -> ExitCode {
    let mut summary = Summary::default();
    if let Err(error) = run(options, &mut summary) {
        eprintln!("xtask: {error:#}");
        summary.failed += 1;
    }
    println!("{summary}");
    if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(options: &Options, summary: &mut Summary) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "the kernels are x86-64's, and so must be the programs that run on them");
    for program in debian::VM_TOOLS {
        setup::program(*program)?;
    }
    let program = match &options.program {
        Some(program) => std::path::absolute(program)?,
        None => test_program(&options.test)?,
    };
    for kernel in &options.kernel {
        let before = summary.clone();
        let start = Instant::now();
        let mut outcome = boot(*kernel, &program, &options.arguments, summary);
        if outcome.is_ok() && options.program.is_none() && summary.passed == before.passed {
            outcome = Err(anyhow!("no test passed"));
        }
        if options.program.is_none() {
            let (passed, seconds) = (summary.passed - before.passed, start.elapsed().as_secs());
            eprintln!("vm: kernel {}: {passed} tests passed, {seconds} s", kernel.name());
        }
        // One kernel's failure must not hide another's.
        if let Err(error) = outcome {
            eprintln!("xtask: kernel {}: {error:#}", kernel.name());
            summary.failed = summary.failed.max(before.failed + 1);
        }
    }
    Ok(())
}

/// Builds a test target and returns its executable.
fn test_program(name: &str) -> Result<PathBuf> {
    setup::for_building()?;
    let mut cargo = workspace::cargo("test");
    cargo.args(["--package", "lb-tests", "--test", name, "--no-run"]);
    exec::run(&mut cargo)?;
    // Now that it is built, cargo only names it: "  Executable tests/packets.rs (target/debug/deps/packets-0123)".
    let output = cargo.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let path =
        text.lines().find_map(|line| line.trim().strip_prefix("Executable ")?.rsplit_once('(')?.1.strip_suffix(')'));
    Ok(workspace::root().join(path.context("cargo named no executable")?))
}

fn boot(kernel: Kernel, program: &Path, arguments: &[String], summary: &mut Summary) -> Result<()> {
    let archive = debian::Release::open(kernel.suite())?;
    let package = kernel.package(&archive)?;
    let mut parts = archive.dependencies(&package)?;
    parts.retain(|part| PARTS.iter().any(|name| part.starts_with(name)));
    parts.insert(0, package.clone());
    let unpacked = parts.iter().map(|part| archive.unpacked(part)).collect::<Result<Vec<_>>>()?;
    let busybox = debian::Release::open(Kernel::V6_12.suite())?.unpacked("busybox-static")?;
    let version = package.strip_prefix(IMAGE).context("a kernel package has another name")?;
    let places = [format!("boot/vmlinuz-{version}"), format!("usr/lib/modules/{version}/vmlinuz")];
    let mut places = unpacked.iter().flat_map(|part| places.iter().map(|place| part.join(place)));
    let vmlinuz = places.find(|path| path.is_file());

    let mut image = Initramfs::default();
    image.file("bin/busybox", &std::fs::read(find_busybox(&busybox)?)?, 0o755);
    let order = modules::add(&mut image, &unpacked, &MODULES)?;
    image.program("test/program", program)?;
    let quoted: Vec<String> =
        arguments.iter().map(|argument| format!("'{}'", argument.replace('\'', r"'\''"))).collect();
    image.file("init", init_script(&order, &quoted.join(" ")).as_bytes(), 0o755);
    let directory = workspace::target().join("vm");
    std::fs::create_dir_all(&directory)?;
    let image_path = directory.join(format!("{}.cpio", kernel.name()));
    std::fs::write(&image_path, image.finish())?;

    let mut qemu = Command::new("timeout");
    qemu.args([
        "--foreground",
        TIME_LIMIT,
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        CPU,
        "-smp",
        "2",
    ])
    .args(["-m", MEMORY, "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot", "-kernel"])
    .arg(vmlinuz.with_context(|| format!("{} hold no kernel", parts.join(", ")))?)
    .arg("-initrd")
    .arg(&image_path)
    .args(["-append", "console=ttyS0 loglevel=4 panic=-1"]);
    let status = watch_console(&mut qemu, summary)?;
    ensure!(status == "0", "the program ended with {status}");
    Ok(())
}

/// Runs the guest, shows its console, counts its tests, and returns the exit code of the program inside.
fn watch_console(qemu: &mut Command, summary: &mut Summary) -> Result<String> {
    exec::announce(qemu);
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start qemu")?;
    let mut console = BufReader::new(child.stdout.take().expect("standard output is piped"));
    let mut status = None;
    let mut line = Vec::new();
    while console.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        writeln!(std::io::stdout(), "{text}")?;
        summary.add_line(&text);
        if let Some(code) = text.strip_prefix(EXIT_LINE) {
            status = Some(code.to_owned());
        }
    }
    let ended = child.wait()?;
    match status {
        Some(status) => Ok(status),
        None => bail!(
            "the guest stopped before the program ended: its last lines say why, if it was a panic (qemu: {ended}; \
             124 is the limit of {TIME_LIMIT} s)"
        ),
    }
}

fn find_busybox(unpacked: &Path) -> Result<PathBuf> {
    let places = ["usr/bin/busybox", "bin/busybox"].map(|place| unpacked.join(place));
    places.into_iter().find(|place| place.is_file()).context("busybox-static holds no busybox")
}

/// What the guest does: the mounts of an ordinary machine, the modules, the program, power off.
fn init_script(modules: &[String], arguments: &str) -> String {
    let modules = modules.join(" ");
    format!(
        "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /sbin /usr/bin /usr/sbin /etc
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp NO_COLOR=1 LB_REQUIRE_ALL=1 RUST_BACKTRACE=1
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mount -t bpf none /sys/fs/bpf
mount -t cgroup2 none /sys/fs/cgroup
for module in {modules}; do insmod /modules/$module; done
ip link set lo up
cd /tmp
echo \"vm: $(uname -r) runs\"
/test/program {arguments}
echo \"{EXIT_LINE}$?\"
poweroff -f
"
    )
}
