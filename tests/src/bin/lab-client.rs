//! The lab's own client: does what a script (a file of JSON, see `raw_client`) says and prints what came of it.

use std::{
    env, fs, io,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use egress_tests::{
    bytes::{Hash, Payload, from_hex, hex},
    raw_client::{Outcome, Script, Step},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Barrier,
    task::JoinSet,
    time::sleep,
};

/// How much of what is received is told in full.
const KEPT: usize = 64 * 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let file = env::args().nth(1).context("usage: lab-client SCRIPT")?;
    let script: Script = serde_json::from_str(&fs::read_to_string(&file).context(file)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let script = Arc::new(script);
        let barrier = Arc::new(Barrier::new(script.copies()));
        let mut copies = JoinSet::new();
        for _ in 0..script.copies() {
            copies.spawn(play(Arc::clone(&script), Arc::clone(&barrier)));
        }
        while let Some(outcome) = copies.join_next().await {
            println!("{}", serde_json::to_string(&outcome?)?);
        }
        Ok(())
    })
}

/// A connection in the middle of its script.
struct Player {
    stream: Option<TcpStream>,
    barrier: Arc<Barrier>,
    hash: Hash,
    kept: Vec<u8>,
    outcome: Outcome,
}

async fn play(script: Arc<Script>, barrier: Arc<Barrier>) -> Outcome {
    let begun = Instant::now();
    let mut player = Player {
        stream: None,
        barrier,
        hash: Hash::default(),
        kept: Vec::new(),
        outcome: Outcome::default(),
    };
    let millis = || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let connected = player.connect(&script).await;
    player.note(0, connected);
    player.outcome.times.push(millis());
    for (index, step) in script.steps().iter().enumerate() {
        if player.outcome.failure.is_some() {
            break;
        }
        let done = player.step(step).await;
        player.note(index + 1, done);
        player.outcome.times.push(millis());
    }
    player.outcome.received = hex(&player.kept);
    player.outcome.digest = player.hash.finish();
    player.outcome
}

impl Player {
    fn note(&mut self, step: usize, done: io::Result<()>) {
        if let Err(error) = done {
            self.outcome.failure = Some((step, format!("{:?}", error.kind())));
        }
    }

    async fn connect(&mut self, script: &Script) -> io::Result<()> {
        let stream = TcpStream::connect(script.address()).await?;
        stream.set_nodelay(true)?;
        self.outcome.local = stream.local_addr().ok();
        self.outcome.peer = stream.peer_addr().ok();
        self.stream = Some(stream);
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Send { hex, chunk, pause } => self.send(&from_hex(hex), *chunk, *pause).await,
            Step::SendPayload(length) => self.send_payload(*length).await,
            Step::Exchange(length) => self.exchange(*length).await,
            Step::FinishSending => self.stream()?.shutdown().await,
            Step::ReadUntil(digits) => {
                let end = from_hex(digits);
                let mut since = Vec::new();
                while !since.ends_with(&end) {
                    self.read(1, &mut since).await?;
                }
                Ok(())
            }
            Step::ReadExact(length) => {
                let mut left = *length;
                while left > 0 {
                    let limit = usize::try_from(left).unwrap_or(usize::MAX);
                    left -= self.read(limit, &mut Vec::new()).await? as u64;
                }
                Ok(())
            }
            Step::ReadToEnd => self.read_to_end().await,
            Step::Pause(millis) => {
                sleep(Duration::from_millis(*millis)).await;
                Ok(())
            }
            Step::Rendezvous => {
                self.barrier.wait().await;
                Ok(())
            }
            Step::Say(line) => {
                println!("{line}");
                Ok(())
            }
            Step::AwaitFile(path) => {
                while !path.exists() {
                    sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            }
            Step::Reset => {
                let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))
            }
            Step::Hold => std::future::pending().await,
        }
    }

    fn stream(&mut self) -> io::Result<&mut TcpStream> {
        self.stream
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    async fn send(&mut self, bytes: &[u8], chunk: usize, pause: u64) -> io::Result<()> {
        for piece in bytes.chunks(chunk.max(1)) {
            self.stream()?.write_all(piece).await?;
            if pause > 0 {
                sleep(Duration::from_millis(pause)).await;
            }
        }
        Ok(())
    }

    async fn send_payload(&mut self, length: u64) -> io::Result<()> {
        send_payload(self.stream()?, length).await
    }

    async fn exchange(&mut self, length: u64) -> io::Result<()> {
        let mut stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        let (mut reader, mut writer) = stream.split();
        let receive = async {
            let mut buffer = vec![0; 256 * 1024];
            let mut left = length;
            while left > 0 {
                let count = reader.read(&mut buffer).await?;
                if count == 0 {
                    self.outcome.saw_end = true;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.take(&buffer[..count]);
                left = left.saturating_sub(count as u64);
            }
            Ok(())
        };
        let exchanged = tokio::try_join!(send_payload(&mut writer, length), receive);
        self.stream = Some(stream);
        exchanged.map(|_| ())
    }

    /// Reads at least 1 and at most `limit` bytes and adds them to `since`.
    async fn read(&mut self, limit: usize, since: &mut Vec<u8>) -> io::Result<usize> {
        let mut buffer = vec![0; limit.min(256 * 1024)];
        let count = self.stream()?.read(&mut buffer).await?;
        if count == 0 {
            self.outcome.saw_end = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.take(&buffer[..count]);
        since.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    async fn read_to_end(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = self.stream()?.read(&mut buffer).await?;
            if count == 0 {
                self.outcome.saw_end = true;
                return Ok(());
            }
            self.take(&buffer[..count]);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        let room = KEPT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

async fn send_payload(stream: &mut (impl AsyncWrite + Unpin), length: u64) -> io::Result<()> {
    let mut payload = Payload::new();
    let mut left = length;
    while left > 0 {
        let bytes = payload.next(left);
        left -= bytes.len() as u64;
        stream.write_all(bytes).await?;
    }
    Ok(())
}
