# Prunus on CPUs: docker build -t prunus . && docker run --rm -v "$PWD:/work" prunus demo --quick
FROM python:3.11-slim
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir .
WORKDIR /work
ENV HF_HOME=/work/.cache/huggingface
ENTRYPOINT ["prunus"]
CMD ["--help"]
