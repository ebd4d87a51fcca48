//! Pairing: two machines whose owner reads a short code off one and types it into the other come
//! to share a secret, and nobody in between does.
//!
//! ```text
//! starter (the PC)                                  answerer (the appliance, which shows it)
//!   X25519 public key a -------------------------->
//!                       <-------------------------- X25519 public key b
//!   for each letter of the code, one after the other:
//!     HMAC(nonce_a, a, b, i, letter) ------------->
//!                       <-------------------------- HMAC(nonce_b, a, b, i, letter)
//!     nonce_a ------------------------------------> checks, or ends it
//!                       <-------------------------- nonce_b
//!   checks, or ends it
//! both: HMAC(X25519(a, b), a, b), the key that seals what follows
//! ```
//!
//! The code does not cross the wire. Who only listens learns it from the nonces afterwards, when it
//! is spent, and not the secret. Who stands in between has two secrets with two machines: the
//! public keys differ, and it has to guess each letter before it is told, one in 2^40 for the whole
//! code. A wrong guess ends the exchange, and gives away the letter it was wrong about: a code that
//! went wrong is not to be typed again. Letters one by one are what makes that so: with one
//! commitment to the whole code, the first reveal would give all of it away, to be used at the
//! other machine. (Bluetooth's passkey entry is made the same way.) The side that shows a code
//! bounds its exchanges, begun ones included, and lets one succeed; a wrong letter closes it.

use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::hmac;
use ring::rand::SystemRandom;

use crate::seal::{self, KEY_LEN, Sealer};

/// Letters of a code.
pub const LETTERS: usize = 8;
/// Bytes of a public key, a nonce and a commitment.
const PART_LEN: usize = 32;
/// Digits and letters without those that look like others.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A public key, a nonce or a commitment.
pub type Part = [u8; PART_LEN];

/// Why a pairing ends.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The text is no code.
    #[error("that is no pairing code: it has {LETTERS} letters and digits")]
    NoCode,
    /// The other side has another code, or somebody stands in between.
    #[error(
        "the code is not the one that the other machine shows, or somebody stands in between; have \
         it show a new code before you try again"
    )]
    WrongCode,
    /// The other side says something else than its turn is.
    #[error("the other machine does not keep to the pairing: {0}")]
    OutOfTurn(&'static str),
    /// The system has no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] std::io::Error),
}

/// A code, as letters of the alphabet.
#[derive(Clone, PartialEq, Eq)]
pub struct Code([u8; LETTERS]);

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code(..)")
    }
}

impl Code {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn random() -> Result<Code, PairError> {
        let bytes = seal::random()?;
        Ok(Code(std::array::from_fn(|i| ALPHABET[usize::from(bytes[i]) % ALPHABET.len()])))
    }

    /// Reads a code as people type it: in any case, with spaces and hyphens, `O` for 0, `I` and `L`
    /// for 1.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(text: &str) -> Result<Code, PairError> {
        let letters = text.chars().filter(|c| !c.is_whitespace() && *c != '-');
        let letters: Option<Vec<u8>> = letters
            .map(|c| match c.to_ascii_uppercase() {
                'O' => Some(b'0'),
                'I' | 'L' => Some(b'1'),
                c => u8::try_from(c).ok().filter(|c| ALPHABET.contains(c)),
            })
            .collect();
        let letters = letters.and_then(|letters| letters.try_into().ok());
        letters.map(Code).ok_or(PairError::NoCode)
    }

    /// The code as it is shown, as in `7K3M-W9QD`.
    pub fn show(&self) -> String {
        let half = |range: std::ops::Range<usize>| -> String {
            self.0[range].iter().map(|c| char::from(*c)).collect()
        };
        format!("{}-{}", half(0..LETTERS / 2), half(LETTERS / 2..LETTERS))
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who asks.
    Starter,
    /// Who shows the code.
    Answerer,
}

/// One side's first words.
pub struct Hello {
    secret: EphemeralPrivateKey,
    /// What is said.
    pub public: Part,
}

impl Hello {
    /// New keys.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn new() -> Result<Hello, PairError> {
        let none = |_| PairError::Random(std::io::Error::other("the system gives none"));
        let secret = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(none)?;
        let public = secret.compute_public_key().map_err(none)?;
        let public = public.as_ref().try_into().expect("an X25519 key has 32 bytes");
        Ok(Hello { secret, public })
    }
}

/// One side after both hellos: its commitments, and what it thinks of the other's.
pub struct Side {
    role: Role,
    code: Code,
    /// Both public keys, the starter's first.
    keys: [Part; 2],
    session: [u8; KEY_LEN],
    nonces: [Part; LETTERS],
    theirs: Option<Part>,
    /// Letters that the other side has proved.
    n_proved: usize,
}

impl Side {
    /// Goes on from both hellos.
    ///
    /// # Errors
    /// If the other's key is none, or there are no random bytes.
    pub fn new(role: Role, hello: Hello, theirs: Part, code: Code) -> Result<Side, PairError> {
        let keys = match role {
            Role::Starter => [hello.public, theirs],
            Role::Answerer => [theirs, hello.public],
        };
        let peer = UnparsedPublicKey::new(&X25519, theirs);
        let session = agree_ephemeral(hello.secret, &peer, |shared| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, shared);
            sign(&key, &[b"jetforge pair session", &keys[0], &keys[1]])
        });
        let session = session.map_err(|_| PairError::OutOfTurn("its key is none"))?;
        let mut nonces = [[0; PART_LEN]; LETTERS];
        for nonce in &mut nonces {
            *nonce = seal::random()?;
        }
        Ok(Side { role, code, keys, session, nonces, theirs: None, n_proved: 0 })
    }

    /// The letter that is to be proved next; [`LETTERS`] when all are.
    pub fn round(&self) -> usize {
        self.n_proved
    }

    /// What binds this side to its letter.
    ///
    /// # Errors
    /// If all are proved.
    pub fn commitment(&self) -> Result<Part, PairError> {
        let nonce = self.nonces.get(self.n_proved).ok_or(PairError::OutOfTurn("it is over"))?;
        Ok(self.commit(self.role, nonce))
    }

    /// Takes the other side's commitment; this side's nonce may be told from now on.
    ///
    /// # Errors
    /// If it has one already.
    pub fn bind(&mut self, theirs: Part) -> Result<(), PairError> {
        match self.theirs.replace(theirs) {
            None if self.n_proved < LETTERS => Ok(()),
            _ => Err(PairError::OutOfTurn("it commits twice")),
        }
    }

    /// What opens this side's commitment.
    ///
    /// # Errors
    /// Before the other side is bound.
    pub fn reveal(&self) -> Result<Part, PairError> {
        match self.theirs {
            Some(_) => Ok(self.nonces[self.n_proved]),
            None => Err(PairError::OutOfTurn("it is not bound yet")),
        }
    }

    /// Checks what opens the other side's commitment, and goes on to the next letter. The answerer
    /// tells its own nonce only after this.
    ///
    /// # Errors
    /// If the letter is another one.
    pub fn check(&mut self, nonce: &Part) -> Result<(), PairError> {
        let theirs = self.theirs.take().ok_or(PairError::OutOfTurn("it is not bound yet"))?;
        let role = match self.role {
            Role::Starter => Role::Answerer,
            Role::Answerer => Role::Starter,
        };
        // Whoever knows the nonce knows all that this comparison could tell.
        if self.commit(role, nonce) != theirs {
            return Err(PairError::WrongCode);
        }
        self.n_proved += 1;
        Ok(())
    }

    /// Seals what both say once every letter is proved.
    ///
    /// # Errors
    /// Before that.
    pub fn sealer(&self) -> Result<Sealer, PairError> {
        match self.n_proved == LETTERS {
            true => Ok(Sealer::new(&self.session, "jetforge pair")),
            false => Err(PairError::OutOfTurn("letters are left to be proved")),
        }
    }

    fn commit(&self, whose: Role, nonce: &Part) -> Part {
        let key = hmac::Key::new(hmac::HMAC_SHA256, nonce);
        let side = if whose == Role::Starter { b"a" } else { b"b" };
        let place = [self.n_proved as u8, self.code.0[self.n_proved.min(LETTERS - 1)]];
        sign(&key, &[b"jetforge pair letter", side, &self.keys[0], &self.keys[1], &place])
    }
}

fn sign(key: &hmac::Key, parts: &[&[u8]]) -> [u8; KEY_LEN] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides(a: &str, b: &str) -> (Side, Side) {
        let (one, two) = (Hello::new().unwrap(), Hello::new().unwrap());
        let (a_public, b_public) = (one.public, two.public);
        let starter = Side::new(Role::Starter, one, b_public, Code::read(a).unwrap());
        let answerer = Side::new(Role::Answerer, two, a_public, Code::read(b).unwrap());
        (starter.unwrap(), answerer.unwrap())
    }

    /// Letters that are proved until one side ends it.
    fn exchange(a: &mut Side, b: &mut Side) -> (usize, Result<(), PairError>) {
        for n in 0..LETTERS {
            let (from_a, from_b) = (a.commitment().unwrap(), b.commitment().unwrap());
            b.bind(from_a).unwrap();
            a.bind(from_b).unwrap();
            let (nonce_a, nonce_b) = (a.reveal().unwrap(), b.reveal().unwrap());
            if let Err(error) = b.check(&nonce_a).and_then(|()| a.check(&nonce_b)) {
                return (n, Err(error));
            }
        }
        (LETTERS, Ok(()))
    }

    #[test]
    fn both_come_to_the_same_secret_by_the_same_code() {
        let (mut a, mut b) = sides("7k3m-w9qd", "7K3MW9QD");
        assert!(a.sealer().is_err());
        assert!(exchange(&mut a, &mut b).1.is_ok());
        let sealed = a.sealer().unwrap().wrap("x", b"the key").unwrap();
        assert_eq!(b.sealer().unwrap().unwrap("x", &sealed).as_deref(), Some(&b"the key"[..]));
        assert!(a.commitment().is_err() && a.bind([0; 32]).is_err());
    }

    #[test]
    fn another_code_ends_it_at_the_first_letter_that_differs() {
        let (mut a, mut b) = sides("7K3M-W9QD", "7K3X-W9QD");
        let (n, ended) = exchange(&mut a, &mut b);
        assert!(matches!(ended, Err(PairError::WrongCode)) && n == 3);
        assert!(a.sealer().is_err() && b.sealer().is_err());
    }

    #[test]
    fn who_stands_in_between_is_found_out_even_with_its_relays() {
        // It has one exchange with each side and passes on what it hears.
        let code = || Code::read("7K3M-W9QD").unwrap();
        let [one, two, in_1, in_2] = [(); 4].map(|()| Hello::new().unwrap());
        let mut a = Side::new(Role::Starter, one, in_1.public, code()).unwrap();
        let mut b = Side::new(Role::Answerer, two, in_2.public, code()).unwrap();
        assert!(matches!(exchange(&mut a, &mut b), (0, Err(PairError::WrongCode))));
    }

    #[test]
    fn nothing_is_told_out_of_turn() {
        let (mut a, b) = sides("00000000", "00000000");
        assert!(a.reveal().is_err() && a.check(&[0; 32]).is_err());
        a.bind(b.commitment().unwrap()).unwrap();
        assert!(a.bind([1; 32]).is_err());
        let low_order = Side::new(
            Role::Starter,
            Hello::new().unwrap(),
            [0; 32],
            Code::read("00000000").unwrap(),
        );
        assert!(low_order.is_err(), "a key that gives a known secret is refused");
    }

    #[test]
    fn codes_are_read_as_people_type_them() {
        let code = Code::random().unwrap();
        assert_eq!(Code::read(&code.show()).unwrap(), code);
        assert_eq!(Code::read(" o0il-abcd ").unwrap().show(), "0011-ABCD");
        for text in ["", "1234", "123456789", "7K3M-W9Q!", "7K3M-W9QU", "ключключ"] {
            assert!(matches!(Code::read(text), Err(PairError::NoCode)), "{text}");
        }
        assert_eq!(format!("{code:?}"), "Code(..)");
    }
}
