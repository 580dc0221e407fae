//! Frames of the node protocol: a length, and that many bytes of JSON. Nothing a peer sends makes
//! the reader allocate more than it sent (I9).

use crate::node_protocol::MAX_FRAME_BYTES;
use quinn::{ReadExactError, RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes is longer than the {MAX_FRAME_BYTES} that are allowed")]
    TooLong { bytes: usize },
    #[error("a frame is not what was expected: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the stream ended: {0}")]
    Ended(String),
}

pub async fn write<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let bytes = frame.len() - 4;
    if bytes > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { bytes });
    }
    frame[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    stream
        .write_all(&frame)
        .await
        .map_err(|error| FrameError::Ended(error.to_string()))
}

/// As [`read`], once there is `room` for as many bytes as the frame announces.
pub async fn read_within<T: DeserializeOwned>(
    stream: &mut RecvStream,
    room: &Semaphore,
) -> Result<T, FrameError> {
    let bytes = length(stream).await?;
    let room = room.acquire_many(bytes as u32).await;
    let _room = room.map_err(|closed| FrameError::Ended(closed.to_string()))?;
    body(stream, bytes).await
}

pub async fn read<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T, FrameError> {
    let bytes = length(stream).await?;
    body(stream, bytes).await
}

async fn length(stream: &mut RecvStream) -> Result<usize, FrameError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(ended)?;
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { bytes });
    }
    Ok(bytes)
}

async fn body<T: DeserializeOwned>(stream: &mut RecvStream, bytes: usize) -> Result<T, FrameError> {
    let mut frame = Vec::new();
    while frame.len() < bytes {
        let chunk = stream
            .read_chunk(bytes - frame.len(), true)
            .await
            .map_err(|error| FrameError::Ended(error.to_string()))?
            .ok_or_else(|| FrameError::Ended("in the middle of a frame".into()))?;
        frame.extend_from_slice(&chunk.bytes);
    }
    Ok(serde_json::from_slice(&frame)?)
}

fn ended(error: ReadExactError) -> FrameError {
    FrameError::Ended(error.to_string())
}
