//! Boards by name: how much memory a model may use on a machine that is not this one.
//!
//! The memory of the Nanos is what their kernels show (3,963 and 1,980 MiB), less an allowance for
//! a headless system and a CUDA context. The allowances are assumptions until they are measured on
//! a board, and are chosen to be too large rather than too small.

/// A machine that a model may be meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Board {
    /// The name on the command line.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Memory that its kernel shows.
    pub memory_bytes: u64,
    /// Memory that the rest of the system is assumed to use.
    pub system_bytes: u64,
    /// Cores that compute; `None` for as many as the machine turns out to have.
    pub n_core: Option<usize>,
}

const MIB: u64 = 1 << 20;

impl Board {
    /// Every board, smallest first.
    pub const ALL: [Board; 3] = [
        Board {
            name: "jetson-nano-2gb",
            title: "Jetson Nano 2GB Developer Kit",
            memory_bytes: 1980 * MIB,
            system_bytes: 768 * MIB,
            n_core: Some(4),
        },
        Board {
            name: "jetson-nano-4gb",
            title: "Jetson Nano Developer Kit (4 GB)",
            memory_bytes: 3963 * MIB,
            system_bytes: 922 * MIB,
            n_core: Some(4),
        },
        Board {
            name: "pc-16gb",
            title: "PC with 16 GB",
            memory_bytes: 15_900 * MIB,
            system_bytes: 2048 * MIB,
            n_core: None,
        },
    ];

    /// The board of this name, or of its short form: `nano4gb` for `jetson-nano-4gb`.
    pub fn find(name: &str) -> Option<Board> {
        let is_meant = |board: &Board| board.name == name || board.short_name() == name;
        Board::ALL.into_iter().find(is_meant)
    }

    /// The name without its family and without dashes: `nano4gb`, `pc16gb`.
    pub fn short_name(&self) -> String {
        self.name.trim_start_matches("jetson-").replace('-', "")
    }

    /// Memory for a model: weights, KV cache and scratch.
    pub const fn available_bytes(&self) -> u64 {
        self.memory_bytes - self.system_bytes
    }
}
