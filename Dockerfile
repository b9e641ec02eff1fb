# Prunus on CPUs: docker build -t prunus . && docker run --rm -v "$PWD:/data" prunus demo --quick
FROM python:3.11-slim
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir .
WORKDIR /data
ENV HF_HOME=/data/.cache/huggingface
ENTRYPOINT ["prunus"]
CMD ["--help"]
