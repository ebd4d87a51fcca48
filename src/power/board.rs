//! Which board this is, as its device tree says.
//!
//! ```text
//! proc/device-tree/compatible    NUL-separated: nvidia,p3449-0000-b00+p3448-0000-b00,
//!                                nvidia,jetson-nano, nvidia,tegra210
//! proc/device-tree/model         for people
//! sys/class/dmi/id/product_name  a PC
//! ```
//!
//! A Nano is a `tegra210` that also says `jetson-nano` or names the module p3448: the TX1 is a
//! `tegra210` too. Old device trees say nothing of the revision, and some of the 2 GB board's say
//! no more than `jetson-nano`; then the size of the memory tells.

use serde::Serialize;

use super::sysfs::Sysfs;

/// A family of machines that are run alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BoardKind {
    /// Jetson Nano developer kit, 4 GB, the first revision: one camera, J48 beside it.
    NanoA02,
    /// Jetson Nano developer kit, 4 GB, the second revision.
    NanoB01,
    /// Jetson Nano module with eMMC, on any carrier.
    NanoEmmc,
    /// Jetson Nano, 4 GB, of a revision that its device tree does not tell.
    Nano,
    /// Jetson Nano 2 GB developer kit: USB-C, no sensor of power.
    Nano2gb,
    /// Another Tegra of NVIDIA's.
    OtherJetson,
    /// A machine with firmware of a PC, or without a device tree.
    Pc,
    /// A board with a device tree that is not NVIDIA's.
    OtherBoard,
}

/// What board this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Board {
    /// The family.
    pub kind: BoardKind,
    /// What its firmware calls it; empty where it says nothing.
    pub model: String,
    /// The words of the device tree's `compatible`.
    pub compatible: Vec<String>,
    /// Release of NVIDIA's system, `R32.7.6`.
    pub l4t: Option<String>,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
}

/// A Nano with less memory than this is the 2 GB board.
const NANO_2GB_BYTES_MAX: u64 = 5 << 29;
const TREES: [&str; 2] = ["proc/device-tree", "sys/firmware/devicetree/base"];

impl Board {
    /// Reads which board this is. It always is one, if perhaps a PC that says nothing.
    pub fn identify(sysfs: &Sysfs) -> Board {
        let in_tree =
            |file: &str| TREES.iter().find_map(|t| sysfs.bytes(&format!("{t}/{file}")).ok());
        let words = in_tree("compatible").unwrap_or_default();
        let words = words.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let compatible: Vec<String> =
            words.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect();
        let in_tree =
            |file: &str| TREES.iter().find_map(|t| sysfs.text(&format!("{t}/{file}")).ok());
        let of_pc = || sysfs.text("sys/class/dmi/id/product_name").ok();
        let memory_bytes = memory_bytes(sysfs);
        Board {
            kind: kind_of(&compatible, memory_bytes),
            model: in_tree("model").or_else(of_pc).unwrap_or_default(),
            l4t: sysfs.text("etc/nv_tegra_release").ok().as_deref().and_then(l4t_release),
            compatible,
            memory_bytes,
        }
    }

    /// Its name for people.
    pub fn name(&self) -> String {
        let family = match self.kind {
            BoardKind::NanoA02 => "Jetson Nano 4 GB, A02",
            BoardKind::NanoB01 => "Jetson Nano 4 GB, B01",
            BoardKind::NanoEmmc => "Jetson Nano 4 GB, eMMC module",
            BoardKind::Nano => "Jetson Nano 4 GB",
            BoardKind::Nano2gb => "Jetson Nano 2 GB",
            BoardKind::OtherJetson => "Jetson",
            BoardKind::Pc => "PC",
            BoardKind::OtherBoard => "board",
        };
        match self.model.is_empty() || self.is_nano() {
            true => family.to_owned(),
            false => format!("{family}: {}", self.model),
        }
    }

    /// Whether it is one of the boards whose clocks we know how to set.
    pub fn is_nano(&self) -> bool {
        use BoardKind::{Nano, Nano2gb, NanoA02, NanoB01, NanoEmmc};
        matches!(self.kind, Nano | Nano2gb | NanoA02 | NanoB01 | NanoEmmc)
    }

    /// Whether it is the Nano with 2 GB.
    pub fn is_nano_2gb(&self) -> bool {
        self.kind == BoardKind::Nano2gb
    }

    /// Whether it has the firmware of a PC, or says nothing of itself.
    pub fn is_pc(&self) -> bool {
        self.kind == BoardKind::Pc
    }
}

fn kind_of(compatible: &[String], memory_bytes: Option<u64>) -> BoardKind {
    let says = |part: &str| compatible.iter().any(|word| word.contains(part));
    let is_nano = says("nvidia,tegra210") && (says("nvidia,jetson-nano") || says("p3448"));
    let is_small = memory_bytes.is_some_and(|bytes| bytes < NANO_2GB_BYTES_MAX);
    if is_nano {
        return match () {
            () if says("jetson-nano-2gb") || says("p3541") || says("p3542") => BoardKind::Nano2gb,
            () if says("p3448-0003") || is_small => BoardKind::Nano2gb,
            () if says("p3448-0002") => BoardKind::NanoEmmc,
            () if says("-b00") || says("-b01") => BoardKind::NanoB01,
            () if says("-a02") || says("-a01") => BoardKind::NanoA02,
            () => BoardKind::Nano,
        };
    }
    match compatible.is_empty() {
        true => BoardKind::Pc,
        false if says("nvidia,tegra") => BoardKind::OtherJetson,
        false => BoardKind::OtherBoard,
    }
}

/// `# R32 (release), REVISION: 7.6, GCID: ...` says `R32.7.6`.
fn l4t_release(text: &str) -> Option<String> {
    let release = text.trim_start_matches("# ").split_whitespace().next()?;
    let revision = text.split("REVISION:").nth(1)?.split(',').next()?.trim();
    let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    let is_right = release.starts_with('R') && is_plain(release) && is_plain(revision);
    is_right.then(|| format!("{release}.{revision}"))
}

fn memory_bytes(sysfs: &Sysfs) -> Option<u64> {
    let text = sysfs.text("proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::tests::trees::{NANO_2GB, NANO_A02, NANO_B01, ORIN, PC, PI, tree};

    fn identify(files: &[(&str, &str)]) -> Board {
        Board::identify(&Sysfs::new(tree(files).path()))
    }

    /// NVIDIA's `tegra210-p3448-0002-p3449-0000-b00.dts`: the module without a slot for a card.
    const EMMC: &[(&str, &str)] = &[(
        "proc/device-tree/compatible",
        "nvidia,p3449-0000-b00+p3448-0002-b00\0nvidia,jetson-nano\0nvidia,tegra210\0",
    )];

    #[test]
    fn boards_are_told_apart() {
        for (files, kind, name) in [
            (NANO_B01, BoardKind::NanoB01, "Jetson Nano 4 GB, B01"),
            (NANO_A02, BoardKind::NanoA02, "Jetson Nano 4 GB, A02"),
            (NANO_2GB, BoardKind::Nano2gb, "Jetson Nano 2 GB"),
            (ORIN, BoardKind::OtherJetson, "Jetson: NVIDIA Jetson Orin Nano Developer Kit"),
            (PC, BoardKind::Pc, "PC: OptiPlex 7090"),
            (PI, BoardKind::OtherBoard, "board: Raspberry Pi 4 Model B Rev 1.4"),
            (EMMC, BoardKind::NanoEmmc, "Jetson Nano 4 GB, eMMC module"),
            (&[], BoardKind::Pc, "PC"),
        ] {
            let board = identify(files);
            assert_eq!((board.kind, board.name().as_str()), (kind, name));
        }
        assert_eq!(identify(NANO_B01).l4t.as_deref(), Some("R32.7.6"));
    }

    #[test]
    fn the_oldest_device_trees_say_little() {
        let old = "nvidia,jetson-nano\0nvidia,tegra210\0";
        let with = |kb: &'static str| {
            let kind = identify(&[("proc/device-tree/compatible", old), ("proc/meminfo", kb)]).kind;
            (kind, identify(&[("sys/firmware/devicetree/base/compatible", old)]).kind)
        };
        assert_eq!(with("MemTotal: 4059328 kB").0, BoardKind::Nano);
        assert_eq!(with("MemTotal: 2026496 kB"), (BoardKind::Nano2gb, BoardKind::Nano));
        let tx1 = [("proc/device-tree/compatible", "nvidia,p2371-2180\0nvidia,tegra210\0")];
        assert_eq!(identify(&tx1).kind, BoardKind::OtherJetson, "the TX1 is no Nano");
    }
}
